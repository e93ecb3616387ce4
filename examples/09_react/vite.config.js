import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// While you work on the page, Vite serves it and passes on what is for penstock, the WebSocket too.
export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/api": { target: "http://127.0.0.1:8000", ws: true } } },
});
