//go:build cgo && !nozmq

package lmcache_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/test/shared"
)

// TestGoldenFilesAreWhole: each part of the golden files has its test, and a
// part that a new release of them adds has none yet.
func TestGoldenFilesAreWhole(t *testing.T) {
	for file, parts := range map[string]map[string]string{
		"lmcache-wire.json": {
			"provenance": "", "encoded_note": "", "encoded": "TestGoldenMessages",
			"live_worker": "TestGoldenSessions", "live_controller": "TestGoldenSessions, TestGoldenControllerSessions",
			"zmtp": "TestGoldenZMTP", "full_lookup_unmerged": "TestGoldenFullLookup",
			"coordinator_http": "the coordinator's",
		},
		"lmcache-hash.json": {
			"provenance": "", "token_list_formulas": "", "token_lists": "TestGoldenKeys", "records": "TestGoldenKeys",
			"mp_records": "the multiprocess keys'",
		},
	} {
		raw, err := os.ReadFile(shared.File(t, "golden", file))
		if err != nil {
			t.Fatal(err)
		}
		var found map[string]json.RawMessage
		if err := json.Unmarshal(raw, &found); err != nil {
			t.Fatal(err)
		}
		for part := range found {
			if _, ok := parts[part]; !ok {
				t.Errorf("%s: no test for %s", file, part)
			}
		}
		for part := range parts {
			if found[part] == nil {
				t.Errorf("%s: no %s", file, part)
			}
		}
	}
}

// zmtpFrame is one frame as it travels: ZMTP 3, NULL mechanism.
type zmtpFrame struct {
	More, Command bool
	Body          []byte
}

func readZMTP(r io.Reader) (f zmtpFrame, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	size := uint64(head[1])
	if head[0]&2 != 0 {
		long := [8]byte{head[1]}
		if _, err := io.ReadFull(r, long[1:]); err != nil {
			return f, err
		}
		size = binary.BigEndian.Uint64(long[:])
	}
	f = zmtpFrame{More: head[0]&1 != 0, Command: head[0]&4 != 0, Body: make([]byte, size)}
	_, err = io.ReadFull(r, f.Body)
	return f, err
}

func appendZMTP(b []byte, frames ...[]byte) []byte {
	for i, f := range frames {
		flags := byte(1)
		if i == len(frames)-1 {
			flags = 0
		}
		b = append(b, flags|2)
		b = append(binary.BigEndian.AppendUint64(b, uint64(len(f))), f...)
	}
	return b
}

// zmtpProperties are the metadata of a READY command.
func zmtpProperties(tb testing.TB, body []byte) map[string]string {
	tb.Helper()
	rest, ok := bytes.CutPrefix(body, []byte("\x05READY"))
	if !ok {
		tb.Fatalf("command %q, want READY", body)
	}
	properties := map[string]string{}
	for len(rest) > 0 {
		name := rest[1 : 1+rest[0]]
		rest = rest[1+rest[0]:]
		size := binary.BigEndian.Uint32(rest)
		properties[string(name)] = string(rest[4 : 4+size])
		rest = rest[4+size:]
	}
	return properties
}

// zmtpMessages are the messages behind a client's greeting and READY.
func zmtpMessages(tb testing.TB, client []byte) (messages [][][]byte) {
	tb.Helper()
	r := bytes.NewReader(client[64:])
	more := false
	for {
		f, err := readZMTP(r)
		if errors.Is(err, io.EOF) {
			return messages
		}
		switch {
		case err != nil:
			tb.Fatal(err)
		case f.Command:
			continue
		case !more:
			messages = append(messages, nil)
		}
		last := len(messages) - 1
		messages[last] = append(messages[last], f.Body)
		more = f.More
	}
}

// play dials address as raw TCP, sends what the recorded client sent, and holds
// the greeting and the READY of the server there against the recorded ones.
// The recorded server speaks ZMTP 3.0, ours may speak any 3.x, and a ROUTER
// may say REP's part.
func (c goldenCapture) play(t *testing.T, address string, kinds ...string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// Greetings cross; the rest depends on what the server's says.
	client, greeting, want := unhex(t, c.ClientBytes), make([]byte, 64), unhex(t, c.ServerGreeting)
	if _, err := conn.Write(client[:64]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, greeting); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(client[64:]); err != nil {
		t.Fatal(err)
	}
	// Signature, major version, mechanism, as-server and filler; the padding of
	// the signature (1 to 8) and the minor version (11) are the sender's own.
	for _, part := range [][2]int{{0, 1}, {9, 11}, {12, 64}} {
		if got, want := greeting[part[0]:part[1]], want[part[0]:part[1]]; !bytes.Equal(got, want) {
			t.Errorf("greeting bytes %v are %x, want %x", part, got, want)
		}
	}
	ready, err := readZMTP(conn)
	if err != nil || !ready.Command {
		t.Fatalf("after the greeting: %+v, %v; want the READY command", ready, err)
	}
	recorded, err := readZMTP(bytes.NewReader(unhex(t, c.ServerReady)))
	if err != nil {
		t.Fatal(err)
	}
	if got := zmtpProperties(t, ready.Body)["Socket-Type"]; !slices.Contains(kinds, got) {
		t.Errorf("our socket is %s, want one of %q (recorded: %q)", got, kinds, recorded.Body)
	}
	return conn
}

// zmtpAnswer reads one message from a raw connection.
func zmtpAnswer(t *testing.T, conn net.Conn) (frames [][]byte) {
	t.Helper()
	for {
		f, err := readZMTP(conn)
		if err != nil {
			t.Fatal(err)
		}
		if f.Command {
			continue
		}
		if frames = append(frames, f.Body); !f.More {
			return frames
		}
	}
}

// TestGoldenZMTP plays the recorded bytes of real clients on raw TCP to our
// sockets. What the clients sent means nothing to a controller: it is counted
// and, where somebody waits, answered; the connection then goes on working.
func TestGoldenZMTP(t *testing.T) {
	played := 0
	captures := readGolden(t).ZMTP.Captures
	for name, c := range captures {
		kind, _, _ := bytes.Cut([]byte(name), []byte(" "))
		played++
		t.Run(string(kind), func(t *testing.T) {
			messages := zmtpMessages(t, unhex(t, c.ClientBytes))
			register := (&lmcache.RegisterMsg{Registration: registration("raw")}).Append(nil)
			switch string(kind) {
			case "PUSH":
				r := newRig(t)
				conn := c.play(t, r.Addresses().Pull, "PULL")
				parts := 0
				for _, m := range messages {
					parts += len(m)
				}
				r.eventually("each part being counted as bad", func() bool {
					return r.sum("firsttoken_lmcache_bad_frames_total") == float64(parts)
				})
				if _, err := conn.Write(appendZMTP(nil, register)); err != nil {
					t.Fatal(err)
				}
				r.eventually("the registration", func() bool { return len(r.Status()) == 1 && r.Status()[0].Registered })
			case "DEALER", "REQ":
				r := newRig(t)
				conn := c.play(t, r.Addresses().Reply, "ROUTER", "REP")
				for range messages {
					answer := zmtpAnswer(t, conn)
					if len(answer) != 2 || len(answer[0]) != 0 {
						t.Fatalf("answer %q, want an empty frame and a payload", answer)
					}
					if m, err := lmcache.Decode(answer[1]); err != nil || m.Type() != "ErrorMsg" {
						t.Errorf("answered %T, %v; want ErrorMsg", m, err)
					}
				}
				if _, err := conn.Write(appendZMTP(nil, nil, register)); err != nil {
					t.Fatal(err)
				}
				if m, err := lmcache.Decode(zmtpAnswer(t, conn)[1]); err != nil || m.Type() != "RegisterRetMsg" {
					t.Errorf("answered %T, %v; want RegisterRetMsg", m, err)
				}
			case "SUB":
				r := newRig(t)
				pub, err := r.ctx.Socket(zmq.XPub, zmq.Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { pub.Close() })
				address, err := pub.Bind("tcp://127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				conn := c.play(t, address[len("tcp://"):], "PUB", "XPUB")
				var got [][]byte
				r.eventually("the subscription", func() bool { got, err = pub.Recv(); return err == nil })
				if diff := cmp.Diff(messages, [][][]byte{got}); diff != "" {
					t.Errorf("subscription (-recorded +seen):\n%s", diff)
				}
				topic := got[0][1:]
				for _, frames := range [][][]byte{{[]byte("other"), []byte("1")}, {topic, []byte("2")}} {
					if err := pub.Send(frames...); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff([][]byte{topic, []byte("2")}, zmtpAnswer(t, conn)); diff != "" {
					t.Error(diff)
				}
			default:
				t.Errorf("no server of ours for %s", name)
			}
		})
	}
	if played == 0 || played != len(captures) {
		t.Errorf("%d captures played of %d", played, len(captures))
	}
}

// TestGoldenFullLookup: what FullLookup, which no release has, was to answer is
// what Index.Match says, told chunk by chunk; on the sockets it is not served,
// as it was not there either.
func TestGoldenFullLookup(t *testing.T) {
	r := newRig(t)
	reply := r.dial(zmq.Dealer, r.Addresses().Reply)
	checked := 0
	messages := readGolden(t).FullLookup.Messages
	for _, m := range messages {
		checked++
		if got, ok := r.asks(reply, unhex(t, m.Hex)).(*lmcache.ErrorMsg); !ok || got.Error == "" {
			t.Errorf("%s on the reply socket: %#v, want an ErrorMsg", m.Type, got)
		}
		if m.Type != "FullLookupRetMsg" {
			continue
		}
		var want struct {
			MatchedInfo [][2]json.RawMessage `json:"matched_info"`
			ChunkSize   int                  `json:"chunk_size"`
		}
		if err := json.Unmarshal(m.Value, &want); err != nil {
			t.Fatal(err)
		}
		ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 100})
		row := []lmcache.Key{1, 2, 3}
		for _, info := range want.MatchedInfo {
			var instance string
			var chunks [][2]any
			if err := errors.Join(json.Unmarshal(info[0], &instance), json.Unmarshal(info[1], &chunks)); err != nil {
				t.Fatal(err)
			}
			for i, chunk := range chunks {
				ix.Admit(worker(instance, 0), chunk[0].(string), row[i:i+1])
			}
			var got [][2]any
			held := ix.Match(nil, row, []string{instance})[0]
			for _, run := range held.Runs {
				for len(got) < run.End {
					got = append(got, [2]any{run.Location, float64((len(got) + 1) * want.ChunkSize)})
				}
			}
			if diff := cmp.Diff(fmt.Sprint(chunks), fmt.Sprint(got)); diff != "" {
				t.Errorf("%s (-FullLookup +ours):\n%s", instance, diff)
			}
		}
	}
	if checked == 0 || checked != len(messages) {
		t.Errorf("%d messages checked of %d", checked, len(messages))
	}
}
