// What the page does when the workbench cannot be reached, or asks who this is: it says so, waits, and goes on.

import * as api from "./api.js";
import { $ } from "./dom.js";

const SOONEST_MS = 400;
const LATEST_MS = 4000;

/** Whether an error is one of the way to the workbench, not of what was asked: asked again, it may pass. */
export const isAway = ({ code, status }) => code === "no-connection" || (code === "unknown" && status >= 502);
/** Whether an error passes: the line, or the sign-in. */
export const passes = (error) => isAway(error) || error.code === "not-signed-in";

export class Connection {
  /**
   * `name`: the account whose page this is; nobody else's sign-in is good for what was drawn on it. `drawing` says
   * whether a stroke is under the hand: no question takes it away.
   */
  constructor(name, drawing) {
    this.name = name;
    api.isOf(name);
    this.drawing = drawing;
    this.lost = false;
    this.strokes = 0;
    this._wake = () => {};
    this._dialog = null;
    addEventListener("online", () => this._wake());
    $("lost-now").addEventListener("click", () => this._wake());
    $("again-form").addEventListener("submit", (event) => this._typed(event));
    $("again-leave").addEventListener("click", () => location.assign("login.html"));
    $("again").addEventListener("cancel", (event) => event.preventDefault());
    // Who signed in again in another window has signed in here as well.
    addEventListener("focus", () => this._dialog && this._known());
    addEventListener("beforeunload", (event) => this.strokes && event.preventDefault());
  }

  /** Do `act` until it is answered, also if somebody has to sign in for it; other errors are thrown. */
  async patiently(act) {
    for (let pause = SOONEST_MS; ; pause = Math.min(LATEST_MS, pause * 2)) {
      try {
        const found = await act();
        this._is(false);
        return found;
      } catch (error) {
        if (error.code === "not-signed-in") {
          this._is(false);
          await this.signIn();
        } else if (isAway(error)) {
          this._is(true);
          await this._pause(pause);
        } else throw error;
      }
    }
  }

  /** So many strokes wait to be sent. */
  waiting(strokes) {
    this.strokes = strokes;
    this._tell();
  }

  /** Ask for the password; resolves when the page's own person is signed in. */
  signIn() {
    if (this._dialog) return this._dialog;
    $("again-name").textContent = this.name;
    $("again-password").value = "";
    $("again-wrong").textContent = "";
    this._ask();
    this._dialog = new Promise((done) => {
      this._signedIn = () => {
        $("again").close();
        this._dialog = null;
        done();
      };
    });
    return this._dialog;
  }

  /** Be told of what changes as long as the page is open; `back` is called when the line was cut and is there again. */
  listen(changed, back) {
    const source = api.events();
    let cut = false;
    let looking = false;
    source.addEventListener("message", (event) => changed(JSON.parse(event.data).progress));
    source.addEventListener("open", () => {
      if (cut) back();
      cut = false;
      this._is(false);
      this._wake();
    });
    source.addEventListener("error", async () => {
      cut = true;
      if (looking) return;
      looking = true;
      await this.patiently(() => this._myself());
      looking = false;
      // Browsers try again by themselves, but not after a refusal, such as before somebody signed in again.
      if (source.readyState !== EventSource.CLOSED) return;
      this.listen(changed, back);
      back();
    });
  }

  _ask() {
    if (this.drawing()) return setTimeout(() => this._ask(), 50);
    $("again").showModal();
    $("again-password").focus();
  }

  async _myself() {
    const { name } = await api.me();
    if (name !== this.name) throw new api.Failure({ code: "not-signed-in" }, 401);
  }

  async _known() {
    try {
      await this._myself();
      this._signedIn();
    } catch {
      // Not yet: the dialog stays.
    }
  }

  async _typed(event) {
    event.preventDefault();
    const button = $("again-form").querySelector("button[type=submit]");
    button.disabled = true;
    $("again-wrong").textContent = "";
    try {
      await api.login(this.name, $("again-password").value);
      this._signedIn();
    } catch ({ problem, message, fix }) {
      $("again-wrong").textContent = [problem ?? message, fix].filter(Boolean).join(": ");
      $("again-password").value = "";
      $("again-password").focus();
    }
    button.disabled = false;
  }

  _pause(ms) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this._wake = () => {
        clearTimeout(timer);
        done();
      };
    });
  }

  _is(lost) {
    if (this.lost === lost) return;
    this.lost = lost;
    this._tell();
  }

  _tell() {
    $("lost").hidden = !this.lost;
    const what = this.strokes === 1 ? "1 drawing waits here and is" : `${this.strokes} drawings wait here and are`;
    const text = this.lost ? `The workbench cannot be reached. ${this.strokes ? `${what} sent` : "The page goes on"} as soon as it answers.` : "";
    if ($("lost-text").textContent !== text) $("lost-text").textContent = text;
  }
}
