"""The memory model: live ranges, plans and their check, workspace and loading, need of a process."""
