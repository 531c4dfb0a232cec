"""
The views that only read: nothing to protect.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from orders.models import Order, Product


@require_GET
def show_order(request: HttpRequest, order_id: int) -> HttpResponse:
    """
    Show one order.
    """
    order = Order.objects.select_related("product").filter(pk=order_id).first()
    if order is None:
        return JsonResponse({"error": f"There is no order {order_id}."}, status=404)
    return JsonResponse(order.to_dict())


@require_GET
def list_products(request: HttpRequest) -> HttpResponse:
    """
    List what the shop sells, and how many are left.
    """
    products = Product.objects.select_related("stock").order_by("sku")
    return JsonResponse(
        {
            "products": [
                {
                    "sku": product.sku,
                    "name": product.name,
                    "price_cents": product.price_cents,
                    "in_stock": product.stock.quantity,
                }
                for product in products
            ]
        }
    )


@require_GET
def health(request: HttpRequest) -> HttpResponse:
    """
    Answer that this worker is up.
    """
    return JsonResponse({"status": "ok"})
