"""Networks that users bring: functions, and modules of Equinox, Flax and Haiku."""
