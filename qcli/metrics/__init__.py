"""How alike two models' outputs are. One metric a module; all stream in constant memory and merge."""
