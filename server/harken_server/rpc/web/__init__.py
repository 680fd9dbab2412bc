"""The HTTP edge: the forms of others over the same door as gRPC's. No queue of its own."""
