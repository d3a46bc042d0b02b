"""dtrain: one recipe that trains anywhere and survives what goes wrong there."""
