package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestEngineSaysWhereItIsAndEndsWithItsContext(t *testing.T) {
	read, write := io.Pipe()
	root := newRootCommand()
	root.SetArgs([]string{"engine", "--model", "m", "--listen", "127.0.0.1:0", "--profile", "3090-7b", "--time-scale", "0.001"})
	root.SetOut(write)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { // ends with ctx
		err := root.ExecuteContext(ctx)
		write.CloseWithError(err)
		ended <- err
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("the first line is %q", line)
	}
	resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"hello","max_tokens":1}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), `"text":"Yes,"`) {
		t.Errorf("%v: %s", err, body)
	}
}
