"""C-FIND queries, and the selection of instances for C-MOVE and C-GET."""
