"""The edges: the only rooms that know protobuf, gRPC and status codes. Each only translates."""
