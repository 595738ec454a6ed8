"""File systems inside disks: a `BlockSource` -> names, attributes and content, by parsers in processes."""
