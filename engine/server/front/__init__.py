"""What every dialect calls: admission, live requests, registration, keys and tenants, administration.

It knows neither gRPC nor HTTP. `service.py` is its only door; `front.py` assembles its parts.
"""
