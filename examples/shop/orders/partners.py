"""
Where partner shops order, with Django REST framework: each has a token and a permission.
"""

from __future__ import annotations

from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.authentication import TokenAuthentication
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import DjangoModelPermissions
from rest_framework.request import Request

from dotmac_tasks_django import downstream_key, idempotent
from orders.answers import MAX_QUANTITY, answer_wish
from orders.checkout import Wish
from orders.models import Order


class OrderSerializer(serializers.Serializer):
    """
    What a partner sends. One per request.
    """

    number = serializers.CharField(max_length=40)
    customer = serializers.CharField(max_length=40)
    product = serializers.CharField(max_length=40)
    quantity = serializers.IntegerField(min_value=1, max_value=MAX_QUANTITY)


class PartnerOrders(GenericAPIView):
    """
    Takes the orders of partners. One per request.
    """

    authentication_classes = (TokenAuthentication,)
    permission_classes = (DjangoModelPermissions,)  # whoever posts needs `orders.add_order`
    queryset = Order.objects.all()
    serializer_class = OrderSerializer

    # On the method, not on the class: by now the framework knows who is asking and whether
    # they may. So two partners may send the same key, a new token is the same partner, and
    # whoever lost the permission gets 403 instead of the stored answer. A validation error
    # is an answer like any other: the retry gets it again.
    @idempotent(required=True, on_storage_error="reject")
    def post(self, request: Request) -> HttpResponse:
        """
        Place an order: 201 and where it is, or an error that says what to do.
        """
        sent = self.get_serializer(data=request.data)
        sent.is_valid(raise_exception=True)
        return answer_wish(
            Wish(**sent.validated_data),
            token=downstream_key(request, "order"),
            charge_key=downstream_key(request, "charge"),
        )
