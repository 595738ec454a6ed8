"""One file per use case, and one event stream."""
