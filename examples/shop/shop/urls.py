"""
Where everything is in the shop.
"""

from __future__ import annotations

from django.urls import path
from orders import pages, partners, views

urlpatterns = [
    path("orders/", views.place_order),
    path("orders/<int:order_id>/", pages.show_order, name="order"),
    path("partners/orders/", partners.PartnerOrders.as_view()),
    path("claims/", views.file_claim),
    path("newsletter/", views.sign_up),
    path("products/", pages.list_products),
    path("health/", pages.health),
]
