from tests.support import quick

__all__ = ["quick"]
