"""The frame around every page: Streamlit, never torch."""
