"""The command: words -> calls -> exit codes. The top of the house; nothing imports it."""
