"""What a running backup or restore has done so far, for whoever shows it.

Decided here and only here: the counters' names and meaning. Plain integers written by
the working threads under one lock and read by a display without it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class BackupProgress:
    """Counters of one backup. Bytes, but for frames and writes."""

    source_bytes: int = 0
    """Logical size of everything to be backed up, as far as it is known yet."""
    done_bytes: int = 0
    """Of these, how many are dealt with: read, skipped as empty, or known to be unchanged."""
    read_bytes: int = 0
    new_bytes: int = 0
    """Plain bytes of frames not stored before."""
    stored_bytes: int = 0
    """Bytes sent to the store, all objects."""
    frames: int = 0
    new_frames: int = 0
    writes: int = 0
    """Objects created."""
    current: str = ""
    """What is being read now."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self.lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)
