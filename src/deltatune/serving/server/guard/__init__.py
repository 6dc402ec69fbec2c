"""What stands between the network and the routes: bounds, origins, keys and their limits, a record of each request."""
