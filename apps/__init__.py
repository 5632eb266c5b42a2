"""The review apps. They alone import Streamlit, and everything else in this repository may be imported by them."""
