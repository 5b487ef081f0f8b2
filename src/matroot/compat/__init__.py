"""Stand-ins for functions of other packages, each in a module with that package's name."""
