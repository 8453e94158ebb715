"""The search for the best plan: for this model, within these limits, on this machine."""
