"""THE VOCABULARY: what every room means by its words. Imports none of our rooms; no sockets, no Flower, no clocks."""

__version__ = "0.1.0"
