"""How a decision is written into the graph."""
