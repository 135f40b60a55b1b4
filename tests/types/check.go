// Reads events and writes a request and an ending, with the types that quicktype makes.
//
//	check EVENTS REQUESTS ENDINGS
package main

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"strings"

	"example.com/check/messages"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func appendLine(file string, line []byte) {
	f := must(os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0))
	must(f.Write(append(line, '\n')))
	if err := f.Close(); err != nil {
		panic(err)
	}
}

func main() {
	for _, line := range bytes.Split(bytes.TrimSpace(must(os.ReadFile(os.Args[1]))), []byte("\n")) {
		if strings.Contains(string(line), `"type":"handoff.ready"`) {
			data := must(messages.UnmarshalHandoffReadyEvent(line)).Data
			link := must(url.Parse(data.URL))
			fmt.Println("ready", data.UserID, link.Path, data.Reused)
		} else {
			data := must(messages.UnmarshalHandoffFailedEvent(line)).Data
			fmt.Println("failed", *data.UserID, data.Reason.Code, data.Attempts)
		}
	}

	request := messages.VerificationRequest{UserID: "go-user", Metadata: map[string]interface{}{"plan": "basic"}}
	appendLine(os.Args[2], must(request.Marshal()))
	user := "go-user"
	ending := messages.VerificationEnding{UserID: &user}
	appendLine(os.Args[3], must(ending.Marshal()))
}
