"""THE WIND TUNNEL. Imports every room; nothing imports it."""
