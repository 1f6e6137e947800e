"""Our gRPC services: translation and status codes. They decide nothing."""
