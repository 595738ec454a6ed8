"""A machine for Hyper-V, and the PowerShell that makes it. **Not run on Windows.**"""
