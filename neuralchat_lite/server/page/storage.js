// What the browser keeps: values under names, as JSON.
// Where storage is full or switched off, the page goes on and only forgets.

const PREFIX = "neuralchat.";

function shelf(area) {
  return {
    read(name, otherwise) {
      try {
        return JSON.parse(window[area].getItem(PREFIX + name)) ?? otherwise;
      } catch {
        return otherwise;
      }
    },
    write(name, value) {
      try {
        window[area].setItem(PREFIX + name, JSON.stringify(value));
        return true;
      } catch {
        return false;
      }
    },
  };
}

export const kept = shelf("localStorage");
export const thisTab = shelf("sessionStorage"); // the API key, which must not outlive the tab
