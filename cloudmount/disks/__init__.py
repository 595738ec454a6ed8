"""Other people's disk formats: reading raw, VHD and VHDX; synthesising VHDX and VHD."""
