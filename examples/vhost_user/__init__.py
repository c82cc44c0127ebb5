"""A vhost-user front end: the side that owns the memory and gives a device requests to work on."""
