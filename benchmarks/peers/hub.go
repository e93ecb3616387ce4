// Go's net/http with a hub: a goroutine and a buffered channel for each viewer, a flush per event, encoding/json.
//
//	go build -o hub hub.go && GOMAXPROCS=1 ./hub PORT
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	keepalive = 15 * time.Second
	waiting   = 1024 // Frames that wait for one viewer. One that is further behind loses them, as in the usual hub.
)

type request struct {
	ID       string `json:"id"`
	Messages []struct {
		Parts []struct {
			Text string `json:"text"`
		} `json:"parts"`
	} `json:"messages"`
}

type chunk struct {
	Type  string `json:"type"`
	ID    string `json:"id"`
	Delta string `json:"delta"`
}

type hub struct {
	sync.RWMutex
	viewers map[string]map[chan []byte]struct{}
}

func (h *hub) add(chat string) chan []byte {
	frames := make(chan []byte, waiting)
	h.Lock()
	defer h.Unlock()
	if h.viewers[chat] == nil {
		h.viewers[chat] = map[chan []byte]struct{}{}
	}
	h.viewers[chat][frames] = struct{}{}
	return frames
}

func (h *hub) remove(chat string, frames chan []byte) {
	h.Lock()
	defer h.Unlock()
	delete(h.viewers[chat], frames)
	if len(h.viewers[chat]) == 0 {
		delete(h.viewers, chat)
	}
}

func (h *hub) publish(chat string, frame []byte) {
	h.RLock()
	defer h.RUnlock()
	for frames := range h.viewers[chat] {
		select {
		case frames <- frame:
		default:
		}
	}
}

func head(w http.ResponseWriter) http.Flusher {
	w.Header().Set("content-type", "text/event-stream")
	w.Header().Set("cache-control", "no-cache")
	w.WriteHeader(http.StatusOK)
	return w.(http.Flusher)
}

func (h *hub) answer(w http.ResponseWriter, r *http.Request) {
	var asked request
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || len(asked.Messages) == 0 {
		http.Error(w, "no such request", http.StatusBadRequest)
		return
	}
	words := strings.Fields(asked.Messages[len(asked.Messages)-1].Parts[0].Text)
	count, _ := strconv.Atoi(words[1])
	rate := 0.0
	if words[0] == "/pace" {
		rate, _ = strconv.ParseFloat(words[2], 64)
	}
	began := time.Now()
	flusher := head(w)
	for number := 0; number < count; number++ {
		text := strconv.Itoa(number) + " "
		if rate > 0 {
			due := began.Add(time.Duration(float64(number) / rate * 1e9))
			time.Sleep(time.Until(due))
			text = fmt.Sprintf("drop %07d @%d ", number, due.UnixNano())
		}
		data, _ := json.Marshal(chunk{"text-delta", "text-1", text})
		frame := []byte("data: " + string(data) + "\n\n")
		h.publish(asked.ID, frame)
		if _, err := w.Write(frame); err != nil {
			return
		}
		flusher.Flush()
	}
	_, _ = w.Write([]byte("data: [DONE]\n\n"))
}

func (h *hub) watch(w http.ResponseWriter, r *http.Request) {
	chat := strings.Split(r.URL.Path, "/")[3]
	frames := h.add(chat)
	defer h.remove(chat, frames)
	flusher := head(w)
	_, _ = w.Write([]byte(":ok\n\n"))
	flusher.Flush()
	ticker := time.NewTicker(keepalive)
	defer ticker.Stop()
	for {
		frame := []byte(": ping\n\n")
		select {
		case <-r.Context().Done():
			return
		case frame = <-frames:
		case <-ticker.C:
		}
		if _, err := w.Write(frame); err != nil {
			return
		}
		flusher.Flush()
	}
}

func main() {
	h := &hub{viewers: map[string]map[chan []byte]struct{}{}}
	http.HandleFunc("/api/chat", h.answer)
	http.HandleFunc("/api/chat/", h.watch)
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
