"""Our gRPC services, one file each: translation and status codes. They decide nothing.

Each method translates, calls the front, and translates back. `tokenmux.server.grpc_api.status` turns errors
into status.
"""
