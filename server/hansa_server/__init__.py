"""THE COORDINATOR. Imports common only. Believes nothing that a client says."""
