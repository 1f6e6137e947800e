"""What every dialect calls: admission, live requests, registration, keys and tenants, administration.

It knows neither gRPC nor HTTP. `service.py` is its one door, `front.py` puts its parts together.
"""
