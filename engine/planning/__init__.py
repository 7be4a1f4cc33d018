"""What is to be done: the request, the selection, the stacks, and how they divide over devices and hosts."""
