"""The OpenAI HTTP dialect over the front: translation and error bodies, beside `tokenmux.server.grpc_api`."""
