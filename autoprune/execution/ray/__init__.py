"""What a search needs of Ray beside Tune: a connection, nodes that are fit, loggers, a relay."""
