def sweep_page(r): return "x"
