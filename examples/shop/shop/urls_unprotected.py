"""
The shop as it would be without the library: every request is new.
"""

from __future__ import annotations

from django.urls import path
from orders import pages, unprotected

urlpatterns = [
    path("orders/", unprotected.place_order),
    path("orders/<int:order_id>/", pages.show_order, name="order"),
    path("partners/orders/", unprotected.PartnerOrders.as_view()),
    path("claims/", unprotected.file_claim),
    path("newsletter/", unprotected.sign_up),
    path("products/", pages.list_products),
    path("health/", pages.health),
]
