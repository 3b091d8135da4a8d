"""How well methods learn and adapt."""
