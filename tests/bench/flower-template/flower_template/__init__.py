"""A Flower app in the layout of Flower's own TensorFlow template."""
