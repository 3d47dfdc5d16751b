// What a person does to a case goes to the workbench one thing after the other, in the order in which it was done.

export class Queue {
  /** `failed` is called with an error; what waited behind it is dropped, because it was drawn upon it. */
  constructor(failed) {
    this.failed = failed;
    this.waiting = [];
    this.busy = false;
  }

  /** Do `act` when all before it is done; resolves when it is, or was dropped. */
  add(act) {
    return new Promise((done) => {
      this.waiting.push({ act, done });
      this._run();
    });
  }

  /** Resolves when nothing is left to do. */
  idle() {
    return this.add(async () => {});
  }

  async _run() {
    if (this.busy) return;
    this.busy = true;
    while (this.waiting.length) {
      const { act, done } = this.waiting.shift();
      try {
        await act();
        done(true);
      } catch (error) {
        this.waiting.splice(0).forEach((one) => one.done(false));
        done(false);
        this.failed(error);
      }
    }
    this.busy = false;
  }
}
