"""The bundle of the other side is an app for Flower to run, not a part of this package: pytest does not import it."""

collect_ignore = ["flower-template"]
