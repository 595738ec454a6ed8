"""Bytes in secret: keys and their slots, sealing and opening, content ids."""
