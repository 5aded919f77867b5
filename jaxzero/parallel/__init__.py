"""Devices: the mesh, the sharding rules, hosts."""
