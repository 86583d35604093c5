"""THE MERCHANT. Imports common only. The only room that may read a row of data."""
