"""docs/mcu_kernels.md: the rows of mcu_kernels.py as tables."""
def page(rows): return ""
