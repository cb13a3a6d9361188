"""What a node does to its own host: loop devices, mounts, growth, freezing. No PostgreSQL, no Redis, no jobs.

Linux only, as root. Every operation may be repeated, also after the process was killed in the middle of it: what is
true is read from the kernel each time, nothing is remembered.
"""
