//! The FUSE hot path of CloudMount: answers the kernel from memory and local copies
//! without taking Python's lock. Empty so far; see README.md.
