"""CloudMount: VM disk backups in Azure Blob Storage or a folder, mounted as a drive."""

__version__ = "0.1.0"
